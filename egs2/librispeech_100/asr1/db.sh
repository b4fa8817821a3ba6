# Where the corpus is: LIBRISPEECH holds, or will hold, the folder LibriSpeech/. The environment wins.
export LIBRISPEECH=${LIBRISPEECH:-downloads}
