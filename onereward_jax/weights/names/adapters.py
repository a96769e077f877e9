"""What other programs call the layers of FLUX: Black Forest Labs' own names (kohya's sd-scripts and ComfyUI write them
too, with or without underscores), and XLabs'.

Some are fused: their rows are those of several of diffusers' layers, one after the other.
"""

from onereward_jax.weights import bfl

_LAYERS = bfl.LAYERS
_DOUBLE, _SINGLE = "double_blocks.{layer}", "single_blocks.{layer}"

FLUX: dict[str, tuple[str, ...]] = {
    **_LAYERS,
    # XLabs'
    f"{_DOUBLE}.processor.qkv_lora1": _LAYERS[f"{_DOUBLE}.img_attn.qkv"],
    f"{_DOUBLE}.processor.qkv_lora2": _LAYERS[f"{_DOUBLE}.txt_attn.qkv"],
    f"{_DOUBLE}.processor.proj_lora1": _LAYERS[f"{_DOUBLE}.img_attn.proj"],
    f"{_DOUBLE}.processor.proj_lora2": _LAYERS[f"{_DOUBLE}.txt_attn.proj"],
    f"{_SINGLE}.processor.qkv_lora": _LAYERS[f"{_SINGLE}.linear1"][:3],
    f"{_SINGLE}.processor.proj_lora": _LAYERS[f"{_SINGLE}.linear2"],
}
