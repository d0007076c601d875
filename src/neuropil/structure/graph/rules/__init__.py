"""What ATen operations do to labels, by kind. Importing this registers every rule."""

from neuropil.structure.graph.rules import elementwise, norms, products, recurrent, reductions, selections, shapes

__all__ = ["elementwise", "norms", "products", "recurrent", "reductions", "selections", "shapes"]
