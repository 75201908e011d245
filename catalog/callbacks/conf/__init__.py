"""Hydra's config group `callbacks`, found by `hydra.searchpath: [pkg://ckptd.catalog.callbacks.conf]`.

A search path that who wants it names, and no plug-in in the namespace `hydra_plugins`: every Hydra application of an
environment imports those.
"""
