"""The network: a backbone shared by all tasks, and one independent head for each."""

from medusa_cl.models.attention import MultiScaleAttention, SharedFeatureAttention
from medusa_cl.models.backbone import Backbone
from medusa_cl.models.heads import ControlHead, HeadFactory, MedusaHead, PlainHead
from medusa_cl.models.multitask import MultiTaskModel

__all__ = [
    "Backbone",
    "ControlHead",
    "HeadFactory",
    "MedusaHead",
    "MultiScaleAttention",
    "MultiTaskModel",
    "PlainHead",
    "SharedFeatureAttention",
]
