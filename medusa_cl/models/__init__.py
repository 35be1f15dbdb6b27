"""The network: a backbone shared by all tasks, and one independent head for each."""

from medusa_cl.models.adapters import AdaptedHead, OwnNetHead
from medusa_cl.models.attention import MultiScaleAttention, SharedFeatureAttention
from medusa_cl.models.backbone import Backbone
from medusa_cl.models.heads import ControlHead, HeadFactory, LinearHead, MedusaHead, PlainHead
from medusa_cl.models.multitask import MultiTaskModel

__all__ = [
    "AdaptedHead",
    "Backbone",
    "ControlHead",
    "HeadFactory",
    "LinearHead",
    "MedusaHead",
    "MultiScaleAttention",
    "MultiTaskModel",
    "OwnNetHead",
    "PlainHead",
    "SharedFeatureAttention",
]
