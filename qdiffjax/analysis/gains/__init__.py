"""How much steps and whole samplers damp or amplify an error."""
