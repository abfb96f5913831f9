"""
Every node that the engine knows, by class type, gathered from the packs. Test nodes are a mapping of their own.
"""

from collections.abc import Mapping
from itertools import chain

from comfy_worker.standin.node import Node
from comfy_worker.standin.nodes_files import FILE_NODES
from comfy_worker.standin.nodes_image import IMAGE_NODES
from comfy_worker.standin.nodes_load import LOAD_NODES
from comfy_worker.standin.nodes_mask import MASK_NODES
from comfy_worker.standin.nodes_media import AUDIO_NODES, VIDEO_NODES
from comfy_worker.standin.nodes_plain import PLAIN_NODES
from comfy_worker.standin.nodes_save import SAVE_NODES

_PACKS = (
    PLAIN_NODES,
    LOAD_NODES,
    IMAGE_NODES,
    MASK_NODES,
    AUDIO_NODES,
    VIDEO_NODES,
    SAVE_NODES,
    FILE_NODES,
)

NODES: Mapping[str, Node] = {node.class_type: node for node in chain.from_iterable(_PACKS)}
