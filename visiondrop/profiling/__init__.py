"""What a run costs: FLOPs and KV-cache bytes by formula."""

from visiondrop.profiling.flops import Flops, ModelSize, kv_bytes, prefill_flops
from visiondrop.profiling.sizes import LLAVA_15_7B

__all__ = ["LLAVA_15_7B", "Flops", "ModelSize", "kv_bytes", "prefill_flops"]
