"""How well an error is predicted for recipes drawn at random, and what else would predict it."""
