"""The adaptive attacker: collects protected images, crops the faces and retrains."""
