"""An ML repository: its address judged, its host reached in one way, one commit of it written into a directory of ours."""
