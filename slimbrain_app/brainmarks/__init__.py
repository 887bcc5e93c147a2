"""The field's benchmark suite Brainmarks: SlimBrain as one of its models, cohorts as its datasets.

Nothing here needs the suite itself but what writes its datasets, which needs ``datasets``.
"""
