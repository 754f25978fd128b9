"""Built-in workloads: short YAML files, each a plan's `workload` section with a description.

A profile for one driver names it as `driver`, which sets that key of every pool group. `common.plan.loading.profiles`
reads them.
"""
