"""Runs inside an actor image, in the user's environment (Python 3.9 and newer): calls the user's ModelManager.

It may rely on the standard library, flops_wire and numpy alone; all else is imported where the user asks for it.
"""
