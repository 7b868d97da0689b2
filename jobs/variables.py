"""The environment variables that configure sdbatch. `docs/reference.md` is made of this list.

`jobs.settings` reads them; the names in `OTHERS` are read by libraries.
"""

from __future__ import annotations

from dataclasses import dataclass

from sd_core.spec import EXECUTIONS


@dataclass(frozen=True)
class Variable:
    """One variable.

    default: the value that stands for an unset or empty variable; empty where no value does.
    meaning: sentences for people, in Markdown.
    """

    name: str
    meaning: str
    default: str = ""


VARIABLES = (
    Variable(
        "SDBATCH_MODELS",
        "The model list: a YAML or JSON file of `name: source` or "
        "`name: {source: …, digest: …}` (the digest is the sha256 that records show), or the same "
        "text itself, beginning with `{`. A source is `demo`, a `.ckpt` or `.safetensors` file, a "
        "diffusers folder, `hf:owner/name[@revision]` or `s3://bucket/key`. Paths are relative to "
        "the file; `~/` begins one below the home folder. Under `loras:`, LoRA have names in the "
        "same way (a file, `s3://bucket/key` or `hf:owner/name/file[@revision]`; the digest is the "
        "file's sha256, which all but a file here needs), or it is a folder whose files have the "
        "names that they are called by; under `embeddings:`, embeddings; under `vaes:`, VAEs, "
        "which may also be diffusers folders. A model's own `loras: [file, {source: …, weight: "
        "0.5}]` are merged into it while it loads, LoHa, LoKr and differences, too. `prediction: v`"
        " and `zero_snr: true` say of a model what its files do not: that it predicts the velocity,"
        " and has no signal at its last timestep.",
    ),
    Variable(
        "SDBATCH_STORE",
        "Where jobs are written unless a manifest or `--store` says so: a folder or "
        "`s3://bucket/prefix`.",
        "out",
    ),
    Variable("SDBATCH_DEVICE", "Where a model runs: `auto`, `cpu`, `cuda` or `cuda:N`.", "auto"),
    Variable(
        "SDBATCH_DTYPE",
        "Number format of a model: `auto`, `float32`, `bfloat16` or `float16`. `auto` is float16 "
        "on a GPU, bfloat16 on a CPU that multiplies it, else float32.",
        "auto",
    ),
    Variable(
        "SDBATCH_EXECUTION",
        f"How a model is run: {', '.join(f'`{name}`' for name in EXECUTIONS)}. "
        "[cpu.md](cpu.md) says what each is. Bytes of images differ between them.",
        EXECUTIONS[0],
    ),
    Variable(
        "SDBATCH_REDIS",
        "The Redis or Valkey server that holds queue and ledger: `redis://`, `rediss://`, "
        "`unix://[:password@]/path?db=0` or `redis+sentinel://host:26379,host/service/0`.",
        "redis://127.0.0.1:6379/0",
    ),
    Variable("SDBATCH_MODEL", "The model that a worker loads: a name of the model list.", "demo"),
    Variable(
        "SDBATCH_STORES",
        "Addresses between spaces. A worker refuses jobs whose store is not at or below one of "
        "them. Without it, jobs may be wherever the worker may write.",
    ),
    Variable(
        "SDBATCH_LORA_MIB",
        "Most MiB, 1 to 1024, of the file of a LoRA or a VAE: of one that a manifest names, and of "
        "one that a worker loads.",
        "512",
    ),
    Variable(
        "SDBATCH_LEASE_S",
        "Seconds, 1 to 3600, after which a worker that says nothing has lost its shards.",
        "60",
    ),
    Variable(
        "SDBATCH_REPRODUCIBLE",
        "`exact` or `fast`, for manifests that do not say.",
        "exact",
    ),
    Variable(
        "SDBATCH_GRACE_S",
        "Seconds, 0 to 3600, that a worker told to stop goes on with images it can finish in "
        "them. The others are saved between two steps.",
        "10",
    ),
    Variable(
        "SDBATCH_METRICS",
        "`host:port` where a worker answers `/metrics` and `/healthz`. Without it, nowhere.",
    ),
    Variable("SDBATCH_LOG", "Form of a worker's log lines: `text` or `json`.", "text"),
    Variable(
        "SDBATCH_CACHE",
        "Folder for models that were fetched from a bucket, for LoRA and embeddings of jobs and "
        "laid-out weights (16 GiB of each at most), for digests of models that were loaded and for "
        "compiled programs.",
        "~/.cache/sdbatch",
    ),
    Variable(
        "SDBATCH_LOCAL",
        "Folder of `sdbatch local`. While one runs there, and neither SDBATCH_REDIS nor "
        "SDBATCH_STORE is set, jobs go to it.",
        "~/.local/share/sdbatch/local",
    ),
    Variable(
        "SDBATCH_WEBHOOK_SECRET",
        "Signs what is sent to webhooks. Without it, nothing is signed.",
    ),
    Variable(
        "SDBATCH_WEBHOOK_PRIVATE", "`1` lets webhooks go to private and loopback addresses.", "0"
    ),
    Variable(
        "SDBATCH_DASHBOARD_TOKEN",
        "Token of `sdbatch dashboard`, 16 to 200 characters of ASCII without spaces. Without it, "
        "each start makes a new one.",
    ),
    Variable("SDBATCH_DEBUG", "`1` shows the traceback of an unexpected error.", "0"),
)

OTHERS = (
    Variable(
        "AWS_ENDPOINT_URL",
        "Server of `s3://` addresses, for one that is not Amazon's. boto3 reads it and all other "
        "`AWS_` variables: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_PROFILE`, ….",
    ),
    Variable(
        "CUDA_VISIBLE_DEVICES",
        "GPUs that a process sees. `--gpus` counts those in it, from 0.",
    ),
    Variable(
        "HF_TOKEN",
        "Account for `hf:` models that ask for one. huggingface_hub reads it and `HF_HOME`, "
        "`HF_ENDPOINT` and `HF_HUB_OFFLINE` too.",
    ),
    Variable("NO_COLOR", "Any value: no colours in what commands say."),
)
"""Variables that libraries read, as far as sdbatch counts on them."""
