"""Extensions registered with Detectron2: a backbone that trains on a CPU in minutes, and images in object storage."""

from __future__ import annotations

from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from detcurate.config import curate_settings
from detcurate.io.storage import RemoteImage, StorageOptions


@BACKBONE_REGISTRY.register()
def build_tiny_resnet_fpn_backbone(cfg: object, input_shape: ShapeSpec) -> FPN:
    """Build a ResNet of one basic block a stage with an FPN on top.

    ``build_resnet_backbone`` requires 64 channels for its smallest depths; here ``MODEL.TINY_RESNET`` sets the
    widths (``STEM_OUT_CHANNELS``, then one of ``WIDTHS`` a stage, res2 onwards at strides 4, 8, 16, …).
    ``MODEL.RESNETS.NORM``, ``MODEL.FPN.*`` and ``MODEL.BACKBONE.FREEZE_AT`` have the same meaning as in Detectron2.
    """
    tiny, norm = cfg.MODEL.TINY_RESNET, cfg.MODEL.RESNETS.NORM
    stem = BasicStem(in_channels=input_shape.channels, out_channels=tiny.STEM_OUT_CHANNELS, norm=norm)
    stages, in_channels = [], tiny.STEM_OUT_CHANNELS
    for index, width in enumerate(tiny.WIDTHS):
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                num_blocks=1,
                stride_per_block=[1 if index == 0 else 2],
                in_channels=in_channels,
                out_channels=width,
                norm=norm,
            )
        )
        in_channels = width
    bottom_up = ResNet(stem, stages, out_features=cfg.MODEL.FPN.IN_FEATURES)
    return FPN(
        bottom_up=bottom_up.freeze(cfg.MODEL.BACKBONE.FREEZE_AT),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


_SCHEMES = ("s3://", "gs://", "az://")


class RemoteImageHandler(PathHandler):
    """Opens images in object storage for reading, through the cache of local copies.

    Args:
        options: Retries, time-outs and cache of the storage.
    """

    def __init__(self, options: StorageOptions) -> None:
        super().__init__()
        self.options = options

    def _get_supported_prefixes(self) -> list[str]:
        return list(_SCHEMES)

    def _open(self, path: str, mode: str = "rb", buffering: int = -1, **_: Any) -> Any:
        if mode not in ("r", "rb"):
            raise ValueError(f"{path}: images in object storage are read-only (got mode {mode!r})")
        return RemoteImage.parse(path, self.options).open()


def open_remote_images(cfg: Any) -> None:
    """Register object storage with Detectron2's file manager, with the options of ``CURATE.STORAGE``."""
    PathManager.register_handler(RemoteImageHandler(storage_options(cfg)), allow_override=True)


def storage_options(cfg: Any) -> StorageOptions:
    """Return the options of ``CURATE.STORAGE``."""
    return curate_settings(cfg.CURATE).storage.options
