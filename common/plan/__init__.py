"""The plan: the validated, frozen document of what to run. `loading` makes it from files, flags and the environment,
`schema` has its types, and `rules` checks what types cannot. Pure, except for the modules that read files."""
