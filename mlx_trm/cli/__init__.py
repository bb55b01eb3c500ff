"""The command line: what the commands take, show and return.

A command module at the top of the package parses nothing itself: it hands its name, its arguments
and the function that does the work to :func:`mlx_trm.cli.running.main`.
"""
