"""The phases: every module here that holds a ``Phase`` is one, and its name is the module's."""
