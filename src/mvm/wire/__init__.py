"""Frames, messages and route matching: what host and guest say to each other (CONTRACT 9 and 10).

Standard library only, because it is shipped into the guest. Everything read from a peer is bounded and parsed
strictly: whatever the peer sends, the result is a value of the expected type, or one `FrameError` or `MessageError`
that names the place.
"""
