"""`python -m espnet_mla.recipe --option value ...`: the stages of ESPnet's asr.sh, on pip packages alone."""

import signal
import sys
from collections.abc import Sequence

from espnet_mla.common.errors import UsageError, UserError
from espnet_mla.recipe.options import help_text, parse


def main(arguments: Sequence[str] | None = None) -> int:
    """Perform the stages; the exit status is 0, 1 after an error, 2 where an option is wrong."""
    given = tuple(sys.argv[1:] if arguments is None else arguments)
    if "--help" in given or "-h" in given:
        print(help_text())
        return 0
    try:
        settings = parse(given)
        # Imported here because --help and a mistyped option are answered at once.
        from espnet_mla.common.log import show_logging
        from espnet_mla.common.processes import end_on_signals
        from espnet_mla.recipe import stages
        from espnet_mla.recipe.layout import Layout

        end_on_signals()
        show_logging()
        stages.perform(Layout(settings, given))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        # No space, no permission: the file is named, what is done stays.
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command with --stage goes on from there", file=sys.stderr)
        return 130
    except SystemExit as ended:
        print(f"stopped by {signal.Signals(int(ended.code or 0) - 128).name}", file=sys.stderr)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
