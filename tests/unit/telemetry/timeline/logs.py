"""What vLLM printed at real starts, shortened; the moment of each line in seconds since the command began."""

from __future__ import annotations

Lines = tuple[tuple[float, str], ...]

# vLLM 0.32, its CPU build; the times are those of its own stamps.
HEAD = (
    (13.0, "(APIServer pid=7) INFO 11-24 10:24:22 [api_utils.py:286] non-default args: {'model': '/m', 'port': 33641}"),
    (26.0, "(APIServer pid=7) INFO 11-24 10:24:35 [model.py:733] Resolved architecture: LlamaForCausalLM"),
    (
        35.0,
        (
            "(EngineCore pid=8) INFO 11-24 10:24:44 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: "
            "model='/m', enforce_eager=False, compilation_config={'mode': <CompilationMode.DYNAMO_TRACE_ONCE: 2>}"
        ),
    ),
    (
        44.0,
        "(Worker pid=9) INFO 11-24 10:24:53 [parallel_state.py:2350] rank 0 in world size 1 is assigned as DP rank 0",
    ),
    (44.1, "(Worker pid=9) INFO 11-24 10:24:53 [cpu_model_runner.py:68] Starting to load model /m..."),
    (45.0, "(Worker pid=9) INFO 11-24 10:24:54 [base_loader.py:82] Initializing model took 0.227707 seconds"),
    (45.2, "(Worker pid=9) INFO 11-24 10:24:54 [default_loader.py:501] Loading weights took 0.12 seconds"),
)
TAIL = (
    (
        107.2,
        (
            "(EngineCore pid=8) INFO 11-24 10:25:56 [kv_cache_utils.py:2327] CPU KV cache size: 87,296 tokens, "
            "Maximum concurrency for 256 tokens per request: 341.00x"
        ),
    ),
    (
        108.0,
        (
            "(EngineCore pid=8) INFO 11-24 10:25:57 [core.py:402] init engine (profile, create kv cache, warmup model) "
            "took 62.65 s"
        ),
    ),
    (109.0, "(APIServer pid=7) INFO 11-24 10:25:58 [entry.py:140] Starting vLLM server on http://127.0.0.1:33641"),
)
COMPILED_ON_CPU = (
    *HEAD,
    (46.0, "(Worker pid=9) INFO 11-24 10:24:55 [cpu_model_runner.py:87] Warming up model for the compilation..."),
    (
        106.0,
        (
            "(EngineCore pid=8) INFO 11-24 10:25:56 [shm_broadcast.py:871] No available shared memory broadcast block "
            "found in 60 seconds. This typically happens when some processes are hanging"
        ),
    ),
    (107.0, "(Worker pid=9) INFO 11-24 10:25:56 [cpu_model_runner.py:91] Warming up done."),
    *TAIL,
)
EAGER = (*HEAD, (48.0, TAIL[1][1]))

# As the source of 0.32 has them, for CUDA.
_WORKER = "(Worker_TP0 pid=9) INFO 11-24 10:25:00"
CUDA_HEAD = (
    *HEAD[:3],
    (40.0, f"{_WORKER} [gpu_model_runner.py:5039] Starting to load model /m..."),
    (41.0, f"{_WORKER} [base_loader.py:82] Initializing model took 0.9 seconds"),
    (43.0, f"{_WORKER} [default_loader.py:501] Loading weights took 1.98 seconds"),
    (43.5, f"{_WORKER} [gpu_model_runner.py:5149] Model loading took 14.99 GiB memory and 3.4 seconds"),
)
CUDA_TAIL = (
    (58.0, f"{_WORKER} [monitor.py:91] Initial profiling/warmup run took 0.50 s"),
    (59.0, f"{_WORKER} [gpu_worker.py:759] Available KV cache memory: 55.1 GiB"),
    (60.0, "(EngineCore pid=8) INFO 11-24 10:25:00 [kv_cache_utils.py:2327] GPU KV cache size: 401,000 tokens"),
    (66.0, f"{_WORKER} [gpu_model_runner.py:6582] Graph capturing finished in 5 secs, took 0.60 GiB"),
    (
        67.0,
        (
            "(EngineCore pid=8) INFO 11-24 10:25:00 [core.py:395] init engine (profile, create kv cache, warmup model) "
            "took 23.4 s (compilation: 12.50 s)"
        ),
    ),
)
CUDA_COLD = (
    *CUDA_HEAD,
    (44.5, f"{_WORKER} [monitor.py:42] Starting torch.compile"),
    (45.0, f"{_WORKER} [backends.py:1104] Using cache directory: /c/torch_compile_cache/a for vLLM's torch.compile"),
    (48.0, f"{_WORKER} [backends.py:1166] Dynamo bytecode transform time: 3.21 s"),
    (56.0, f"{_WORKER} [backends.py:382] Cache the graph of compile range (1, 2048) for later use"),
    (56.5, f"{_WORKER} [backends.py:398] Compiling a graph for compile range (1, 2048) takes 8.10 s"),
    (57.0, f"{_WORKER} [monitor.py:62] torch.compile took 12.50 s in total"),
    *CUDA_TAIL,
)
CUDA_AOT = (
    *CUDA_HEAD,
    (
        47.0,
        f"{_WORKER} [decorators.py:319] Directly load AOT compilation from path /c/torch_aot_compile/a/rank_0_0/model",
    ),
    (47.1, f"{_WORKER} [monitor.py:62] torch.compile took 2.10 s in total"),
    *CUDA_TAIL,
)
CUDA_PIECES = (
    *CUDA_HEAD,
    (44.5, f"{_WORKER} [monitor.py:42] Starting torch.compile"),
    (
        49.0,
        (
            f"{_WORKER} [backends.py:295] Directly load the compiled graph(s) for compile range (1, 2048) from the "
            "cache, took 0.913 s"
        ),
    ),
    (50.0, f"{_WORKER} [monitor.py:62] torch.compile and initial profiling/warmup run together took 5.50 s in total"),
    *CUDA_TAIL,
)
