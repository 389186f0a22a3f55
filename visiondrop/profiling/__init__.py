"""What a run costs: FLOPs and KV-cache bytes by formula."""

from visiondrop.profiling.flops import Flops, ModelSize, kv_bytes, prefill_flops

__all__ = ["Flops", "ModelSize", "kv_bytes", "prefill_flops"]
