"""SAELens' runners with seeds, several SAEs at a time, and runs that can be resumed exactly."""
