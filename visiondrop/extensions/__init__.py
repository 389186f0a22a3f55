"""What methods do to a model beside reducing tokens: masks, frozen rows, steering.

An `Extension` sets hooks of its own on the one model that a method is applied to, and removes them.
"""

from visiondrop.extensions.base import Extension

__all__ = ["Extension"]
