"""The plan: the validated, frozen document of what to run. `schema` has its types and declares its flags, `loading`
makes a plan from files, flags and the environment, and `rules` checks what types cannot. Pure, except for the modules
that read files."""
