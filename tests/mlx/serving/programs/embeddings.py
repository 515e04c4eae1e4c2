"""Reads `{"model", "texts"}` and prints the vectors: normalized means of the last hidden states, by mlx-lm alone."""

import json
import sys

import mlx.core as mx
import numpy as np
from mlx_lm import load

order = json.load(sys.stdin)
model, tokenizer = load(order["model"])
if mx.default_device() == mx.cpu:
    model.set_dtype(mx.float32)
vectors = []
for text in order["texts"]:
    hidden = model.model(mx.array([tokenizer.encode(text)]))[0].astype(mx.float32)
    mean = np.array(hidden).astype(np.float64).mean(axis=0)
    vectors.append((mean / np.linalg.norm(mean)).tolist())
print(json.dumps(vectors))
