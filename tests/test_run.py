"""python -m espnet_mla.run is python with the plugin registered, in the workers that `spawn` starts too."""

import subprocess
import sys
import textwrap

import pytest


def run(*arguments, cwd=None):
    command = [sys.executable, "-m", "espnet_mla.run", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_a_script_gets_its_arguments_its_name_and_the_modules_beside_it(tmp_path):
    (tmp_path / "beside.py").write_text("value = 7\n")
    script = tmp_path / "script.py"
    script.write_text("import sys, beside\nprint(__name__, sys.argv[1:], beside.value)\nsys.exit(3)\n")
    done = run(script, "--a", "b")
    assert done.stdout == "__main__ ['--a', 'b'] 7\n"
    assert done.returncode == 3


@pytest.mark.slow  # the fixture `recipe` is built by it too
def test_a_module_is_run_with_the_choices_registered():
    done = run("-m", "espnet2.bin.asr_train", "--encoder", "conformer", "--print_config")
    assert done.returncode == 0
    assert "attention_conf: {}" in done.stdout


def test_a_spawned_worker_knows_the_choices(tmp_path):
    (tmp_path / "work.py").write_text(
        textwrap.dedent(
            """
            from espnet2.tasks.asr import encoder_choices

            def build(queue):
                encoder = encoder_choices.get_class("branchformer")(
                    20, output_size=16, attention_layer_type="mla", attention_conf={"kv_lora_rank": 4}
                )
                queue.put(type(encoder.encoders[0].attn).__name__)
            """
        )
    )
    (tmp_path / "main.py").write_text(
        textwrap.dedent(
            """
            import multiprocessing
            import work

            context = multiprocessing.get_context("spawn")
            queue = context.Queue()
            process = context.Process(target=work.build, args=(queue,))
            process.start()
            print(queue.get(timeout=100))
            process.join()
            """
        )
    )
    done = run("main.py", cwd=tmp_path)
    assert done.stdout == "MLA\n", done.stderr


def test_anything_else_is_answered_with_the_usage():
    from espnet_mla.run import main

    with pytest.raises(SystemExit, match="usage: python -m espnet_mla.run -m module"):
        main(["-c", "pass"])
