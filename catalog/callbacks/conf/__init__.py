"""Hydra's config group `callbacks`, found by `hydra.searchpath: [pkg://ckptd.catalog.callbacks.conf]`.

Named in the search path by whoever wants it, and no plug-in of the namespace `hydra_plugins`: those are imported by every
Hydra application of an environment, and are not found at all in editable installs.
"""
