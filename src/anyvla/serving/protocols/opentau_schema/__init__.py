"""The messages of OpenTau's gRPC service."""
