"""Physics of a cryo-electron tomogram: shapes, densities, scene and imaging."""
