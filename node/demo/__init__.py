"""`atoll demo`: one run on this machine by several ordinary peers, watched, and killed where that is asked for.

Nothing here is faked for the demo: each peer is what `atoll up` starts, with its own home, key, port and process group.
"""
