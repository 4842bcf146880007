"""An image's layers, linked into the nodes that pull it.

The work itself blocks and belongs into worker threads or into the helper container, whose process has no Twisted.
"""
