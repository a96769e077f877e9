"""Names of FLUX layers in other programs' adapters: Black Forest Labs' own (also written by kohya's sd-scripts and
ComfyUI, with or without underscores), and XLabs'.

Some layers are fused: they concatenate the rows of several diffusers layers.
"""

from onereward_jax.weights import bfl

_LAYERS = bfl.LAYERS
_DOUBLE, _SINGLE = "double_blocks.{layer}", "single_blocks.{layer}"

FLUX: dict[str, tuple[str, ...]] = {
    **_LAYERS,
    # XLabs
    f"{_DOUBLE}.processor.qkv_lora1": _LAYERS[f"{_DOUBLE}.img_attn.qkv"],
    f"{_DOUBLE}.processor.qkv_lora2": _LAYERS[f"{_DOUBLE}.txt_attn.qkv"],
    f"{_DOUBLE}.processor.proj_lora1": _LAYERS[f"{_DOUBLE}.img_attn.proj"],
    f"{_DOUBLE}.processor.proj_lora2": _LAYERS[f"{_DOUBLE}.txt_attn.proj"],
    f"{_SINGLE}.processor.qkv_lora": _LAYERS[f"{_SINGLE}.linear1"][:3],
    f"{_SINGLE}.processor.proj_lora": _LAYERS[f"{_SINGLE}.linear2"],
}
