"""Small networks of Limbeck's own, taps on the features of any network, and discriminator heads on them.

A raw network is called as `forward(x, c_noise, cond=None)` and returns a tensor like x (B, ...); c_noise (B,)
is the noise input as a preconditioner scales it (ln(sigma)/4, t in [0, 1], or a timestep 0..1000). cond is
None or a mapping such as {"label": LongTensor (B,)}; the label `classes`, one past the last, is the null
class, and no condition means null. The attribute `null` says what stands for "no condition" per sample (None:
the network is unconditional), and `build_network(net.config)` builds the network again. Super-resolvers are called with
pictures alone (`imdn`); `resize` is MATLAB's bicubic, `tiled` and `cropped_adaptively` take large and odd pictures apart.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from limbeck.errors import LimbeckError, unknown
from limbeck.networks.adapters import LowRank, adapted, adapters, fused, merged
from limbeck.networks.attention import Attention, Processor, attend, attended, attentions, exchange_processors, masked
from limbeck.networks.attention_jvp import attention_jvp
from limbeck.networks.bicubic import resize
from limbeck.networks.checkpointing import checkpoint_blocks
from limbeck.networks.conditioning import Conditioning, LabelEmbedding, NoiseFeatures, sinusoids
from limbeck.networks.contract import Condition, Network
from limbeck.networks.counted import Counted, counted
from limbeck.networks.dit import DiT
from limbeck.networks.forward_mode import ForwardMode, attend_forward_mode, dual_attention
from limbeck.networks.graph import GraphNetwork, perceptron
from limbeck.networks.heads import ChannelMean, Heads, feature_shapes
from limbeck.networks.imdn import IMDN, IMDNAS, copy_body, load_imdn, save_imdn
from limbeck.networks.mlp import ResidualMLP
from limbeck.networks.negative import Negative, negative_prompt
from limbeck.networks.replay import RngCapture
from limbeck.networks.taps import FeatureTap, candidate_layers
from limbeck.networks.tiling import cropped_adaptively, tiled
from limbeck.networks.unet import UNet

NETWORKS: dict[str, type[ResidualMLP | UNet | DiT]] = {"mlp": ResidualMLP, "unet": UNet, "dit": DiT}


def build_network(config: Mapping[str, Any]) -> ResidualMLP | UNet | DiT:
    """A new network from {"kind": "mlp" | "unet" | "dit", **options of its constructor}; "counted" as `counted` writes it.

    Raises LimbeckError for an unknown kind, an unknown option or a missing one.
    """
    options = dict(config)
    kind, values = options.pop("kind", None), options.pop("counted", None)
    if kind not in NETWORKS:
        raise unknown("kind of network", str(kind), NETWORKS)
    parameters = inspect.signature(NETWORKS[kind]).parameters
    for name in options:
        if name not in parameters:
            raise unknown(f"option of the network {kind!r}", name, parameters)
    if "shape" not in options:
        raise LimbeckError(f'the network {kind!r} needs a "shape", the shape of one sample')
    network = NETWORKS[kind](**options)
    return counted(network, values) if values else network


__all__ = [
    "IMDN",
    "IMDNAS",
    "NETWORKS",
    "Attention",
    "ChannelMean",
    "Condition",
    "Conditioning",
    "Counted",
    "DiT",
    "FeatureTap",
    "ForwardMode",
    "GraphNetwork",
    "Heads",
    "LabelEmbedding",
    "LowRank",
    "Negative",
    "Network",
    "NoiseFeatures",
    "Processor",
    "ResidualMLP",
    "RngCapture",
    "UNet",
    "adapted",
    "adapters",
    "attend",
    "attend_forward_mode",
    "attended",
    "attention_jvp",
    "attentions",
    "build_network",
    "candidate_layers",
    "checkpoint_blocks",
    "copy_body",
    "counted",
    "cropped_adaptively",
    "dual_attention",
    "exchange_processors",
    "feature_shapes",
    "fused",
    "load_imdn",
    "masked",
    "merged",
    "negative_prompt",
    "perceptron",
    "resize",
    "save_imdn",
    "sinusoids",
    "tiled",
]
