"""The commands. `app` registers each; each calls a plain function elsewhere in the package."""
