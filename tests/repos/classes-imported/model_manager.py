from parts import ModelManager

__all__ = ['ModelManager']
