"""Families of Hugging Face's transformers, in small, from configurations: nothing is downloaded."""

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from tests.structure.zoo.case import Case, Example

__all__ = ["CASES"]

WORDS = 29
TEXT: dict[str, Any] = {
    "vocab_size": WORDS,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DEEP: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}


def image(side: int, batch: int = 2) -> Tensor:
    """Give a fixed random batch of images."""
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(8))


def words(length: int = 6, batch: int = 2) -> Tensor:
    """Give a fixed random batch of words, none of them padding."""
    return torch.randint(3, WORDS, (batch, length), generator=torch.Generator().manual_seed(9))


def family(
    name: str, model: str, example: Example, notes: str = "", *, tolerance: float = 1e-9, **settings: Any
) -> Case:
    """Describe a model by its class and the settings of its configuration."""

    def build() -> nn.Module:
        transformers = importlib.import_module("transformers")
        made = getattr(transformers, model)
        return made(made.config_class(**settings))

    return Case(name, build, example, notes, tolerance=tolerance, needs=("transformers",))


STAGES: dict[str, Any] = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 12, 12]}
VISION: dict[str, Any] = {**DEEP, "image_size": 16, "patch_size": 8, "num_labels": 4}
ROUNDED = "the norm is computed in float32"
CASES = (
    family("hf-resnet", "ResNetForImageClassification", image(32), "bottleneck blocks",
           embedding_size=8, hidden_sizes=[16, 24], depths=[2, 1], num_labels=4),
    family("hf-resnet-basic", "ResNetForImageClassification", image(32), "basic blocks",
           embedding_size=8, hidden_sizes=[8, 12], depths=[1, 2], layer_type="basic", num_labels=4),
    family("hf-regnet", "RegNetForImageClassification", image(32), "grouped convolutions, squeeze and excitation",
           embedding_size=8, hidden_sizes=[8, 16, 16, 24], depths=[1, 2, 1, 1], groups_width=4, num_labels=4),
    family("hf-convnext", "ConvNextForImageClassification", image(32), num_channels=3, num_labels=4, **STAGES),
    family("hf-convnextv2", "ConvNextV2ForImageClassification", image(32), "global response normalisation",
           num_channels=3, num_labels=4, **STAGES),
    family("hf-mobilenetv2", "MobileNetV2ForImageClassification", image(32),
           depth_multiplier=0.25, expand_ratio=2.0, num_labels=4),
    family("hf-efficientnet", "EfficientNetForImageClassification", image(32), "asymmetric padding",
           image_size=32, width_coefficient=0.25, depth_coefficient=1.0, hidden_dim=320, num_block_repeats=[1] * 7,
           num_labels=4),
    family("hf-swin", "SwinForImageClassification", image(16), "windows, shifts by roll, merged patches",
           image_size=16, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=4),
    family("hf-segformer", "SegformerForSemanticSegmentation", image(32), "reduced keys, depthwise mixing",
           depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 12, 16], num_attention_heads=[1, 2, 2, 4], decoder_hidden_size=12,
           num_labels=4),
    family("hf-vit", "ViTForImageClassification", image(16), **VISION),
    family("hf-deit", "DeiTForImageClassification", image(16), "class and distillation tokens", **VISION),
    family("hf-beit", "BeitForImageClassification", image(16), "relative positions, layer scale", **VISION,
           use_relative_position_bias=True),
    family("hf-dinov2", "Dinov2ForImageClassification", image(16), "layer scale; head on two concatenated tokens",
           **VISION, mlp_ratio=2),
    family("hf-mobilevit", "MobileViTForImageClassification", image(32), "unfolds patches around attention",
           image_size=32, hidden_sizes=[8, 12, 16], neck_hidden_sizes=[4, 8, 8, 8, 12, 12, 16], num_attention_heads=2,
           num_labels=4),
    family("hf-poolformer", "PoolFormerForImageClassification", image(64), "GroupNorm(1), pooling minus input",
           depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 12, 12], num_labels=4),
    family("hf-gpt2", "GPT2LMHeadModel", words(), "Conv1D layers: weights transposed; tied head",
           n_embd=16, n_layer=2, n_head=4, n_positions=12, **TEXT),
    family("hf-gpt-neox", "GPTNeoXForCausalLM", words(), "fused qkv per head, partial rotary, parallel residual",
           max_position_embeddings=12, **DEEP, **TEXT, tolerance=1e-4),
    family("hf-opt", "OPTForCausalLM", words(), hidden_size=16, num_hidden_layers=2, num_attention_heads=4, ffn_dim=24,
           word_embed_proj_dim=16, max_position_embeddings=12, **TEXT),
    family("hf-bloom", "BloomForCausalLM", words(), "fused qkv per head, ALiBi",
           hidden_size=16, n_layer=2, n_head=4, **TEXT, tolerance=1e-4),
    family("hf-llama", "LlamaForCausalLM", words(), f"grouped queries, rotary; {ROUNDED}", **DEEP, **TEXT,
           num_key_value_heads=2, max_position_embeddings=12, tolerance=1e-4),
    family("hf-llama-plain", "LlamaForCausalLM", words(), f"as many keys as queries; {ROUNDED}", **DEEP, **TEXT,
           num_key_value_heads=4, max_position_embeddings=12, tolerance=1e-4),
    family("hf-qwen3", "Qwen3ForCausalLM", words(), f"norms per head; {ROUNDED}", **DEEP, **TEXT, head_dim=6,
           num_key_value_heads=2, max_position_embeddings=12, tolerance=1e-4),
    family("hf-bert", "BertForSequenceClassification", words(), num_labels=4,
           max_position_embeddings=12, **DEEP, **TEXT),
    family("hf-distilbert", "DistilBertForSequenceClassification", words(), vocab_size=WORDS, dim=16, n_layers=2,
           n_heads=4, hidden_dim=24, max_position_embeddings=12, num_labels=4, pad_token_id=0),
    family("hf-albert", "AlbertForSequenceClassification", words(), "one layer's weights used by all layers",
           embedding_size=8, max_position_embeddings=12, num_labels=4, **DEEP, **TEXT),
    family("hf-t5", "T5ForConditionalGeneration", {"input_ids": words(), "decoder_input_ids": words(4)},
           f"encoder and decoder, relative positions; {ROUNDED}", d_model=16, d_kv=4, d_ff=24, num_layers=2,
           num_heads=4, decoder_start_token_id=0, tolerance=1e-4, **TEXT),
    family("hf-bart", "BartForConditionalGeneration", {"input_ids": words(), "decoder_input_ids": words(4)},
           "cross attention", d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
           decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=12,
           decoder_start_token_id=2, forced_eos_token_id=2, **TEXT),
    family("hf-mixtral", "MixtralForCausalLM", words(), f"a mixture of experts; {ROUNDED}", **DEEP, **TEXT,
           num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=12,
           experts_implementation="batched_mm", tolerance=1e-4),
    family("hf-mamba", "MambaForCausalLM", words(), f"a selective state space; {ROUNDED}", hidden_size=8,
           num_hidden_layers=1, state_size=4, tolerance=1e-4, **TEXT),
    family("hf-whisper", "WhisperForConditionalGeneration",
           {"input_features": torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(10)),
            "decoder_input_ids": words(4, 1)},
           "one-dimensional convolutions before attention", num_mel_bins=8, d_model=16, encoder_layers=1,
           decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=24,
           decoder_ffn_dim=24, max_source_positions=8, max_target_positions=12, decoder_start_token_id=1, **TEXT),
    family("hf-bit", "BitForImageClassification", image(32), "weights standardised by a norm in training mode",
           embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_groups=2, num_labels=4),
    family("hf-levit", "LevitForImageClassification", image(64), "attention that halves the map, one table of biases",
           image_size=64, hidden_sizes=[16, 24, 32], num_attention_heads=[2, 2, 2], depths=[1, 1, 1],
           key_dim=[4, 4, 4], num_labels=4),
    family("hf-hiera", "HieraForImageClassification", image(32), "windows, pooled queries", image_size=[32, 32],
           embed_dim=8, num_heads=[1, 2], depths=[1, 1], num_query_pool=1, patch_stride=[4, 4], patch_size=[7, 7],
           patch_padding=[3, 3], masked_unit_size=[4, 4], num_labels=4),
    family("hf-xlnet", "XLNetForSequenceClassification", words(), "relative attention by einsum",
           vocab_size=WORDS, d_model=16, n_layer=2, n_head=4, d_inner=24, num_labels=4),
    family("hf-fnet", "FNetForSequenceClassification", words(), "a Fourier transform over words and units",
           max_position_embeddings=12, num_labels=4, **DEEP, **TEXT),
    family("hf-rwkv", "RwkvForCausalLM", words(), "a recurrence by hand", hidden_size=16, num_hidden_layers=2,
           attention_hidden_size=16, tolerance=1e-4, **TEXT),
    family("hf-wav2vec2", "Wav2Vec2ForCTC", torch.randn(2, 400, generator=torch.Generator().manual_seed(11)),
           "waves; a grouped convolution with weight norm", vocab_size=WORDS, conv_dim=[8, 8], conv_stride=[5, 2],
           conv_kernel=[10, 3], num_feat_extract_layers=2, num_conv_pos_embeddings=4,
           num_conv_pos_embedding_groups=2, mask_time_prob=0.0, **DEEP),
    family("hf-patchtst", "PatchTSTForPrediction",
           {"past_values": torch.randn(2, 16, 2, generator=torch.Generator().manual_seed(12))}, "patches of series",
           num_input_channels=2, context_length=16, patch_length=4, patch_stride=4, d_model=8, num_attention_heads=2,
           num_hidden_layers=1, ffn_dim=16, prediction_length=4),
    family("hf-clip-vision", "CLIPVisionModelWithProjection", image(16), projection_dim=8, **VISION),
)  # fmt: skip
