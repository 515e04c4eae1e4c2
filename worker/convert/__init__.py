"""GGUF to an MLX model folder: a program of its own (`python -P -m mlxsup.worker.convert SRC DEST`).

`gguf` reads, `names`, `config` and `tokenizer` decide, `folder` writes. Only what is known to come out
right is converted: the llama architecture, affine weights, byte-level BPE. Everything else is refused by
name.
"""

# Raised whenever the same GGUF would be written as other files: folders of an older version are made again.
VERSION = 1
