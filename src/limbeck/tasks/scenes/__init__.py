"""Scenes that are to look like what a teacher of pictures knows: a head whose truth is known, or a prompt."""

from limbeck.tasks.scenes.renders import LinearLatents, RenderLibrary
from limbeck.tasks.scenes.task import SceneTask, camera_vector, check_encoder, new_splats

__all__ = ["LinearLatents", "RenderLibrary", "SceneTask", "camera_vector", "check_encoder", "new_splats"]
