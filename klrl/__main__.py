"""The ``klrl`` command as ``python -m klrl``."""

if __name__ == "__main__":  # worker processes import this file by another name
    from klrl.scripts.main import command

    command()
