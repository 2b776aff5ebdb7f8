"""The Kubernetes manifests as data: generated files, rendering, schemas and the rules that schemas cannot express."""
