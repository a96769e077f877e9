"""Adapters in every naming give diffusers', transformers' and PEFT's outputs."""

import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

import safetensors.torch  # noqa: E402
from diffusers.loaders import lora_conversion_utils  # noqa: E402
from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin  # noqa: E402

from onereward_jax import tree  # noqa: E402
from onereward_jax.judge import conversation  # noqa: E402
from onereward_jax.judge.judge import Judge  # noqa: E402
from onereward_jax.models import lora  # noqa: E402
from onereward_jax.weights.load import param_shapes  # noqa: E402
from onereward_jax.weights.names import flux, name_rules  # noqa: E402
from onereward_jax.weights.peft_adapters import load_adapters, save_adapter, with_adapters  # noqa: E402
from tests.support import official_flux, official_judge, parity, tiny_judge  # noqa: E402

RANK = 4
WIDTH = 48  # of the tiny transformer
ATTENTION = ["to_q", "to_k", "to_v", "add_q_proj", "add_v_proj", "to_out.0", "to_add_out"]


class Pipeline(FluxLoraLoaderMixin):
    """What `load_lora_weights` needs of a FluxFillPipeline."""

    hf_device_map = None
    text_encoder = None
    components: dict = {}  # noqa: RUF012
    lora_scale = 1.0

    def __init__(self, transformer):
        self.transformer = transformer


@pytest.fixture
def models():
    ours, theirs = official_flux.pair()
    params = parity.params_from_torch(theirs, flux.TABLE, ours, flux.example_inputs(ours))
    return ours, params, theirs


def assert_same_outputs(ours, params, adapter, theirs):
    arguments = official_flux.inputs()
    with torch.no_grad(), parity.one_thread():
        expected = official_flux.call(theirs, *[torch.from_numpy(x) for x in arguments])
    apply = jax.jit(ours.apply)
    plain = apply({"params": params}, *arguments)
    assert parity.relative_error(plain, expected) > 0.01  # the adapter is seen
    for adapted in (lora.attach(params, adapter), lora.merge(params, adapter)):
        assert parity.relative_error(apply({"params": adapted}, *arguments), expected) < 1e-5


def normal(*shape, seed=[0]):  # noqa: B006
    seed[0] += 1
    return torch.from_numpy(np.random.default_rng(seed[0]).standard_normal(shape).astype(np.float32)) * 0.2


def linears(theirs):
    return {name: module for name, module in theirs.named_modules() if isinstance(module, torch.nn.Linear)}


def official(theirs, chosen, a="lora_A", b="lora_B", prefix="transformer.", rank=RANK):
    tensors = {}
    for name, module in linears(theirs).items():
        if chosen(name):
            tensors[f"{prefix}{name}.{a}.weight"] = normal(rank, module.in_features)
            tensors[f"{prefix}{name}.{b}.weight"] = normal(module.out_features, rank)
    return tensors


def bfl(rank=RANK):
    """Fused and other layers in the naming of Black Forest Labs: {name of a layer: (A, B)}."""
    pair = lambda inputs, outputs: (normal(rank, inputs), normal(outputs, rank))
    layers = {}
    for layer in range(official_flux.CONFIG["num_layers"]):
        for stream in ("img", "txt"):
            block = f"double_blocks.{layer}.{stream}"
            layers |= {
                f"{block}_attn.qkv": pair(WIDTH, 3 * WIDTH),
                f"{block}_attn.proj": pair(WIDTH, WIDTH),
                f"{block}_mlp.0": pair(WIDTH, 4 * WIDTH),
                f"{block}_mlp.2": pair(4 * WIDTH, WIDTH),
                f"{block}_mod.lin": pair(WIDTH, 6 * WIDTH),
            }
    for layer in range(official_flux.CONFIG["num_single_layers"]):
        block = f"single_blocks.{layer}"
        layers |= {f"{block}.linear2": pair(5 * WIDTH, WIDTH), f"{block}.modulation.lin": pair(WIDTH, 3 * WIDTH)}
    layers |= {"final_layer.linear": pair(WIDTH, 12), "final_layer.adaLN_modulation.1": pair(WIDTH, 2 * WIDTH)}
    return layers


@pytest.mark.parametrize("case", ["plain", "alphas", "metadata", "old names", "only some layers"])
def test_diffusers_naming(models, case, tmp_path):
    ours, params, theirs = models
    in_attention = lambda name: any(name.endswith(f"attn.{target}") for target in ATTENTION)
    chosen = {"plain": lambda name: True, "only some layers": lambda name: ".1." in name}.get(case, in_attention)
    factors = ("lora.down", "lora.up") if case == "old names" else ("lora_A", "lora_B")
    tensors, metadata = official(theirs, chosen, *factors), None
    if case == "alphas":
        names = {key.split(".lora_")[0] for key in tensors}
        tensors |= {f"{name}.alpha": torch.tensor(6.0 if "single" in name else 2.0) for name in sorted(names)}
    if case == "metadata":
        # Another rank and another alpha for some layers, by pattern.
        tensors |= official(theirs, lambda name: name.endswith("attn.to_q"), rank=2)
        config = {
            "r": RANK,
            "lora_alpha": 8,
            "target_modules": rf".*attn\.({'|'.join(ATTENTION)})",
            "rank_pattern": {"attn.to_q": 2},
            "alpha_pattern": {"attn.to_q": 3, r"^transformer_blocks\.1\.attn\.to_v": 1},
            "use_rslora": True,
        }
        metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in config.items()})}
    file = tmp_path / "pytorch_lora_weights.safetensors"
    safetensors.torch.save_file(tensors, file, metadata)
    Pipeline(theirs).load_lora_weights(tmp_path, weight_name=file.name)
    assert_same_outputs(ours, params, load_adapters("transformer", params, [(tmp_path, 1.0)]), theirs)


@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model."])
def test_kohya_naming(models, prefix, tmp_path):
    """As sd-scripts writes it, and as ComfyUI does."""
    ours, params, theirs = models
    tensors = {}
    for name, (a, b) in bfl().items():
        name = prefix + (name.replace(".", "_") if prefix == "lora_unet_" else name)
        tensors |= {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b}
        if "final_layer" not in name:  # whose alpha diffusers does not read
            tensors[f"{name}.alpha"] = torch.tensor(1.5)
    file = tmp_path / "style.safetensors"
    safetensors.torch.save_file(tensors, file)
    Pipeline(theirs).load_lora_weights(file)
    # diffusers leaves these two without its prefix, and so without effect.
    theirs_lacks = {key: x for key, x in tensors.items() if "final_layer" in key}
    safetensors.torch.save_file({key: x for key, x in tensors.items() if key not in theirs_lacks}, file)
    assert_same_outputs(ours, params, load_adapters("transformer", params, [(file, 1.0)]), theirs)


def test_xlabs_naming(models, tmp_path):
    ours, params, theirs = models
    tensors = {}

    def add(name, inputs, outputs):
        tensors.update({f"{name}.down.weight": normal(RANK, inputs), f"{name}.up.weight": normal(outputs, RANK)})

    for layer in range(2):
        for number in (1, 2):
            add(f"double_blocks.{layer}.processor.qkv_lora{number}", WIDTH, 3 * WIDTH)
            add(f"double_blocks.{layer}.processor.proj_lora{number}", WIDTH, WIDTH)
    for layer in range(3):
        add(f"single_blocks.{layer}.processor.qkv_lora", WIDTH, 3 * WIDTH)
        add(f"single_blocks.{layer}.processor.proj_lora", 5 * WIDTH, WIDTH)
    file = tmp_path / "lora.safetensors"
    safetensors.torch.save_file(tensors, file)
    Pipeline(theirs).load_lora_weights(file)
    assert_same_outputs(ours, params, load_adapters("transformer", params, [(file, 1.0)]), theirs)


def full_width(num_layers, num_single_layers):
    """Shapes of FLUX.1-Fill's parameters, with so many layers."""
    config = {
        "in_channels": 384,
        "out_channels": 64,
        "num_layers": num_layers,
        "num_single_layers": num_single_layers,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
    }
    module = flux.module_from_config(config)
    return param_shapes(module, "transformer")


def assert_equals_conversion(adapter, converted):
    """The factors are diffusers', to the bit; it has a factor of its own in A and not in B."""
    for number, factor in enumerate(("lora_A", "lora_B")):
        kernels = tree.unflatten({f"{path}/kernel": ab[number] for path, ab in lora.factors(adapter).items()})
        for name, array in name_rules.to_official(flux.TABLE, kernels):
            key = f"transformer.{name.removesuffix('.weight')}.{factor}.weight"
            np.testing.assert_array_equal(array, converted.pop(key).numpy(), err_msg=key)
    assert not converted


def test_fused_layers_of_black_forest_labs_at_full_width(tmp_path):
    """Every layer of FLUX, of rank 1, in the naming of adapters trained on the original code."""
    width, tensors = 3072, {}

    def add(name, inputs, outputs):
        tensors[f"base_model.model.{name}.lora_A.weight"] = normal(1, inputs)
        tensors[f"base_model.model.{name}.lora_B.weight"] = normal(outputs, 1)

    for layer in range(19):
        for stream in ("img", "txt"):
            block = f"double_blocks.{layer}.{stream}"
            add(f"{block}_attn.qkv", width, 3 * width)
            add(f"{block}_attn.proj", width, width)
            add(f"{block}_mlp.0", width, 4 * width)
            add(f"{block}_mlp.2", 4 * width, width)
            add(f"{block}_mod.lin", width, 6 * width)
    for layer in range(38):
        add(f"single_blocks.{layer}.linear1", width, 7 * width)
        add(f"single_blocks.{layer}.linear2", 5 * width, width)
        add(f"single_blocks.{layer}.modulation.lin", width, 3 * width)
    add("final_layer.linear", width, 64)
    file = tmp_path / "kontext.safetensors"
    safetensors.torch.save_file(tensors, file)
    adapter = load_adapters("transformer", full_width(19, 38), [(file, 1.0)])
    assert_equals_conversion(adapter, lora_conversion_utils._convert_fal_kontext_lora_to_diffusers(tensors))


def test_fused_single_blocks_of_kohya_at_full_width(tmp_path):
    name = "lora_unet_single_blocks_0_linear1"
    tensors = {f"{name}.lora_down.weight": normal(3, 3072), f"{name}.lora_up.weight": normal(7 * 3072, 3)}
    file = tmp_path / "kohya.safetensors"
    safetensors.torch.save_file(tensors, file)
    adapter = load_adapters("transformer", full_width(1, 1), [(file, 1.0)])
    assert_equals_conversion(adapter, lora_conversion_utils._convert_kohya_flux_lora_to_diffusers(tensors))


def test_the_final_norm_of_black_forest_labs_has_its_halves_the_other_way_round(models, tmp_path):
    _, params, _ = models
    a, b = normal(RANK, WIDTH), normal(2 * WIDTH, RANK)
    name = "diffusion_model.final_layer.adaLN_modulation.1"
    safetensors.torch.save_file({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, tmp_path / "x.safetensors")
    adapter = load_adapters("transformer", params, [(tmp_path / "x.safetensors", 1.0)])
    swapped = lora_conversion_utils.swap_scale_shift(b)
    np.testing.assert_array_equal(adapter["norm_out"]["linear"]["lora_b"].T, swapped.numpy())


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_several_adapters_with_weights(models, tmp_path):
    ours, params, theirs = models
    pipeline, files = Pipeline(theirs), []
    for number, (target, rank) in enumerate((("to_q", 2), ("to_q", 3), ("proj_out", 4))):
        file = tmp_path / f"{number}.safetensors"
        safetensors.torch.save_file(official(theirs, lambda name: name.endswith(target), rank=rank), file)  # noqa: B023
        files.append(file)
    for number, file in enumerate(files):  # a layer with an adapter has another name
        pipeline.load_lora_weights(file, adapter_name=str(number))
    theirs.set_adapters(["0", "1", "2"], [0.5, -2.0, 1.5])
    weighted = list(zip(files, (0.5, -2.0, 1.5), strict=True))
    assert_same_outputs(ours, params, load_adapters("transformer", params, weighted), theirs)


def trained(params, targets, scale=0.3):
    """An adapter as training leaves it: no zeros in B."""
    adapter = lora.LoRA(RANK, 1.0, targets).init(params, jax.random.key(0))
    return jax.tree.map(lambda x: x + scale * jax.random.normal(jax.random.key(x.size), x.shape), adapter)


@pytest.mark.parametrize("targets", [r"attn/", r"(^|[^/])proj_out$|single_transformer_blocks/norm", r".*"])
def test_diffusers_loads_what_we_save(models, targets, tmp_path, caplog):
    ours, params, theirs = models
    adapter = trained(params, targets)
    save_adapter(tmp_path, "transformer", adapter, 0.7)
    logger = diffusers.utils.logging.get_logger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        Pipeline(theirs).load_lora_weights(tmp_path)
    finally:
        logger.removeHandler(caplog.handler)
    # It always says of the text encoder that the file has nothing for it, and that this is well.
    assert all("prefix='text_encoder'. This is safe to ignore" in message for message in caplog.messages)
    scaled = jax.tree.map(np.asarray, lora.detach(lora.attach(params, adapter, 0.7))[1])
    assert_same_outputs(ours, params, scaled, theirs)
    jax.tree.map(np.testing.assert_array_equal, load_adapters("transformer", params, [(tmp_path, 1.0)]), scaled)
    layers = {name.removesuffix(".lora_A.default_0") for name, _ in theirs.named_modules() if "lora_A.default" in name}
    assert len(layers) == sum(len(a) if a.ndim == 3 else 1 for a, _ in lora.factors(adapter).values())


# The judge.

SIZES = official_judge.SIZES


def pair_of_images():
    generator = np.random.default_rng(8)
    return [generator.integers(0, 256, (1, *size, 3), np.uint8) for size in SIZES]


def answers_of(judge):
    ids, lengths = judge.encode_questions(tiny_judge.QUESTIONS[:1])
    images = [jax.numpy.asarray(image) for image in pair_of_images()]
    batch = {"first": images[0], "second": images[1], "question_ids": ids[None], "question_lengths": lengths[None]}
    with jax.default_matmul_precision("highest"):
        return judge._answer(judge.params, batch)[0, 0]


def torch_answers_of(model):
    with torch.no_grad(), parity.one_thread():
        logits = model(**official_judge.official_inputs(tiny_judge.QUESTIONS[0], pair_of_images())).logits[0, -1]
    return torch.log_softmax(logits, dim=-1)[list(conversation.answer_ids(tiny_judge.tokenizer()))]


@pytest.fixture
def judges(tmp_path):
    """Ours in a directory, and theirs with the same weights."""
    ours, params, theirs = official_judge.models()
    judge = Judge(ours, params, tiny_judge.tokenizer(), tiny_judge.SETTINGS)
    judge.save_pretrained(tmp_path / "judge")
    return tmp_path / "judge", judge, theirs


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_judge_reads_an_adapter_of_peft(judges, tmp_path):
    directory, plain, theirs = judges
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=6,
        target_modules=r".*(q_proj|v_proj|gate_proj|lm_head|attn\.qkv|mlp\.0)",
        rank_pattern={"q_proj": 2},
        alpha_pattern={r"layers\.1\.self_attn\.q_proj": 5},
    )
    model = peft.get_peft_model(theirs, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += normal(*parameter.shape)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)  # lm_head itself
    judge = Judge.from_pretrained(directory, "float32", lora=tmp_path / "adapter")
    expected = torch_answers_of(model)
    assert parity.relative_error(answers_of(plain), expected) > 1e-3
    assert parity.relative_error(answers_of(judge), expected) < 1e-5

    judge.save_pretrained(tmp_path / "merged")
    merged = Judge.from_pretrained(tmp_path / "merged", "float32")
    assert parity.relative_error(answers_of(merged), expected) < 1e-5


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_peft_reads_an_adapter_of_the_judge(judges, tmp_path):
    directory, plain, theirs = judges
    adapter = trained(plain.params, r"layers/self_attn|merger|blocks/mlp/gate")
    save_adapter(tmp_path / "adapter", "judge", adapter, 0.5, base=str(directory))
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter")
    expected = torch_answers_of(adapted)
    judge = Judge(plain.model, lora.attach(plain.params, adapter, 0.5), plain.tokenizer, plain.settings)
    assert parity.relative_error(answers_of(plain), expected) > 1e-3
    assert parity.relative_error(answers_of(judge), expected) < 1e-5
    again = with_adapters("judge", plain.params, tmp_path / "adapter")
    jax.tree.map(np.testing.assert_array_equal, again, judge.params)
