//! What a user asks for: the service's specification and its validation. Imports nothing of ours.
