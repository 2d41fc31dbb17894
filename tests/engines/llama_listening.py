"""llama.cpp's own HTTP server in a process of its own: python llama_listening.py GGUF PORT."""

import signal
import sys

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.port = int(sys.argv[2])  # on 127.0.0.1, its default
params.n_ctx, params.n_parallel, params.cpuparams.n_threads = 512, 2, 1
params.warmup = False
server = xllamacpp.Server(params)
signal.pause()
