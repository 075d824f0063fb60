// The CustomResourceDefinitions of the Gateway API, which a test applies: their module is downloaded and nothing of it is built, so that what it
// requires does not count for the lab.
module e13.dev/gatehouse/lab/gateway-api

go 1.26.0

require sigs.k8s.io/gateway-api v1.6.1
