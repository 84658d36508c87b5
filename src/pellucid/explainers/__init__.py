"""The methods, one idea a file. The catalogue finds them by walking this folder."""
