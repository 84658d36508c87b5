"""Executes shape and type annotations in the test run: `--jaxtyping-packages=pellucid,shapes.checker`."""

from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as for every type checker
