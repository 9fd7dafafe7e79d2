"""COCO at the edge: reading pools, writing manifests, rendering driving scenes."""
