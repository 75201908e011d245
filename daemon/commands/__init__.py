"""The subcommands of `ckptd`, one module each."""
