"""llama.cpp in a process of its own, which the tests ask and then kill: its server may hang when it is destroyed.

Run as a script: argv is the GGUF and 1 for exact attention. The first line out is the address; then each line in is a
request of /completions and each line out the answer.
"""

import json
import os
import sys


def main() -> None:
    import xllamacpp

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints is no answer
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_ctx = 256
    params.verbosity = 0
    params.warmup = False
    params.fit_params = False
    params.cache_ram_mib = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    if sys.argv[2] == "1":
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    print(json.dumps(server.listening_address), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(server.handle_completions(json.loads(line))), file=answers, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
