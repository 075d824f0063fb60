module e13.dev/gatehouse

go 1.26.0
