// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {IERC5267} from "@openzeppelin/contracts/interfaces/IERC5267.sol";
import {Test} from "forge-std/Test.sol";

import {TypedData} from "../src/TypedData.sol";
import {INodeRegistry} from "../src/interfaces/INodeRegistry.sol";
import {
    Assignment,
    IJobEscrow,
    JobSpec,
    Order,
    Receipt as SignedReceipt,
    SkipReason,
    Voucher
} from "../src/interfaces/IJobEscrow.sol";

/// @notice The library hashes calldata; this hands it some.
contract TypedDataCaller {
    function hash(JobSpec calldata spec) external pure returns (bytes32) {
        return TypedData.hash(spec);
    }
}

/// @notice Pins what is signed, as literals and as vectors that other implementations check themselves against.
/// @dev `vectors/typed_data.json` is written once. A change to it makes every signature in the field worthless.
contract TypedDataTest is Test {
    string internal constant ORDER =
        "Order(address requester,address token,uint128 maxPrice,address node,address assigner,bytes32 specHash,uint64 deadline,uint32 challengeWindow,address arbiter,uint16 maxFeeBps,uint64 nonce)";
    string internal constant JOB_SPEC = "JobSpec(string inputCID,string operation,string params)";
    string internal constant ASSIGNMENT = "Assignment(bytes32 jobId,address node,uint64 expiry)";
    string internal constant VOUCHER =
        "Voucher(address requester,address node,address token,uint128 cumulative,uint64 coveredNonce)";
    string internal constant RECEIPT = "Receipt(bytes32 jobId,uint128 price,bytes32 resultHash)";
    /// @dev Keys of the development mnemonic whose addresses the vectors name.
    string internal constant MNEMONIC = "test test test test test test test test test test test junk";

    string internal json;
    IJobEscrow internal escrow;

    function setUp() external {
        json = vm.readFile("contracts/test/vectors/typed_data.json");
        vm.chainId(vm.parseJsonUint(json, ".domain.chainId"));
        address where = vm.parseJsonAddress(json, ".domain.verifyingContract");
        // All that the constructor asks of a registry.
        vm.mockCall(address(1), abi.encodeCall(INodeRegistry.escrow, ()), abi.encode(where));
        vm.mockCall(address(1), abi.encodeCall(INodeRegistry.unbondingPeriod, ()), abi.encode(3));
        bytes memory args = abi.encode(address(1), uint64(1 hours), address(2), uint32(1), uint64(1));
        deployCodeTo("JobEscrow.sol:JobEscrow", args, where);
        escrow = IJobEscrow(where);
    }

    function _bytes32(string memory key) internal view returns (bytes32) {
        return vm.parseJsonBytes32(json, key);
    }

    function _order() internal view returns (Order memory order) {
        order.requester = vm.parseJsonAddress(json, ".order.requester");
        order.token = vm.parseJsonAddress(json, ".order.token");
        order.maxPrice = uint128(vm.parseJsonUint(json, ".order.maxPrice"));
        order.node = vm.parseJsonAddress(json, ".order.node");
        order.assigner = vm.parseJsonAddress(json, ".order.assigner");
        order.specHash = _bytes32(".order.specHash");
        order.deadline = uint64(vm.parseJsonUint(json, ".order.deadline"));
        order.challengeWindow = uint32(vm.parseJsonUint(json, ".order.challengeWindow"));
        order.arbiter = vm.parseJsonAddress(json, ".order.arbiter");
        order.maxFeeBps = uint16(vm.parseJsonUint(json, ".order.maxFeeBps"));
        order.nonce = uint64(vm.parseJsonUint(json, ".order.nonce"));
    }

    function _digest(bytes32 structHash) internal view returns (bytes32) {
        return keccak256(abi.encodePacked(hex"1901", _bytes32(".domainSeparator"), structHash));
    }

    function test_TypeHashesArePinned() external pure {
        assertEq(TypedData.ORDER_TYPEHASH, keccak256(bytes(ORDER)));
        assertEq(TypedData.JOB_SPEC_TYPEHASH, keccak256(bytes(JOB_SPEC)));
        assertEq(TypedData.ASSIGNMENT_TYPEHASH, keccak256(bytes(ASSIGNMENT)));
        assertEq(TypedData.RECEIPT_TYPEHASH, keccak256(bytes(RECEIPT)));
        assertEq(TypedData.VOUCHER_TYPEHASH, keccak256(bytes(VOUCHER)));
    }

    function test_VectorsTypeHashes() external view {
        assertEq(TypedData.ORDER_TYPEHASH, _bytes32(".typeHashes.Order"));
        assertEq(TypedData.JOB_SPEC_TYPEHASH, _bytes32(".typeHashes.JobSpec"));
        assertEq(TypedData.ASSIGNMENT_TYPEHASH, _bytes32(".typeHashes.Assignment"));
        assertEq(TypedData.RECEIPT_TYPEHASH, _bytes32(".typeHashes.Receipt"));
        assertEq(TypedData.VOUCHER_TYPEHASH, _bytes32(".typeHashes.Voucher"));
    }

    function test_VectorsDomain() external view {
        bytes32 typeHash =
            keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
        assertEq(
            keccak256(abi.encode(typeHash, keccak256("Littoral"), keccak256("1"), block.chainid, address(escrow))),
            _bytes32(".domainSeparator")
        );
    }

    /// @dev ERC-5267: what wallets ask for.
    function test_DomainIsReadable() external view {
        (
            bytes1 fields,
            string memory name,
            string memory version,
            uint256 chainId,
            address where,
            bytes32 salt,
            uint256[] memory extensions
        ) = IERC5267(address(escrow)).eip712Domain();
        assertEq(fields, hex"0f");
        assertEq(name, "Littoral");
        assertEq(version, "1");
        assertEq(chainId, block.chainid);
        assertEq(where, address(escrow));
        assertEq(salt, 0);
        assertEq(extensions.length, 0);
    }

    function test_VectorsSpecHash() external {
        JobSpec memory spec = JobSpec(
            vm.parseJsonString(json, ".spec.inputCID"),
            vm.parseJsonString(json, ".spec.operation"),
            vm.parseJsonString(json, ".spec.params")
        );
        assertEq(new TypedDataCaller().hash(spec), _bytes32(".specHash"));
        assertEq(_bytes32(".order.specHash"), _bytes32(".specHash"));
    }

    function test_VectorsJobId() external view {
        assertEq(escrow.jobIdOf(_order()), _bytes32(".jobId"));
    }

    function testFuzz_JobIdIsTheDigest(Order calldata order) external view {
        assertEq(escrow.jobIdOf(order), _digest(keccak256(abi.encode(TypedData.ORDER_TYPEHASH, order))));
    }

    /// @dev One bit more than a member has, and the rest of the order full or empty.
    function test_RevertWhen_AMemberOverflowsItsType() external {
        uint8[11] memory bits = [160, 160, 128, 160, 160, 0, 64, 32, 160, 16, 64];
        for (uint256 member = 0; member < 11; ++member) {
            if (bits[member] == 0) continue; // specHash takes the whole word
            for (uint256 bit = bits[member]; bit < 256; ++bit) {
                for (uint256 full = 0; full < 2; ++full) {
                    uint256[11] memory words;
                    for (uint256 i = 0; i < 11; ++i) {
                        if (full == 1) words[i] = bits[i] == 0 ? type(uint256).max : (1 << bits[i]) - 1;
                    }
                    (bool ok,) = address(escrow).staticcall(abi.encodePacked(escrow.jobIdOf.selector, words));
                    assertTrue(ok, "clean");
                    words[member] |= 1 << bit;
                    (ok,) = address(escrow).staticcall(abi.encodePacked(escrow.jobIdOf.selector, words));
                    assertFalse(ok, "dirty");
                }
            }
        }
    }

    function test_VectorsAssignment() external view {
        Assignment memory assignment = Assignment(
            _bytes32(".jobId"),
            vm.parseJsonAddress(json, ".assignment.node"),
            uint64(vm.parseJsonUint(json, ".assignment.expiry"))
        );
        _assertSigned(TypedData.hash(assignment), ".assignment", 2);
    }

    function test_VectorsReceipt() external view {
        SignedReceipt memory receipt = SignedReceipt(
            _bytes32(".jobId"), uint128(vm.parseJsonUint(json, ".receipt.price")), _bytes32(".receipt.resultHash")
        );
        _assertSigned(TypedData.hash(receipt), ".receipt", 1);
    }

    function _voucher() internal view returns (Voucher memory) {
        return Voucher(
            vm.parseJsonAddress(json, ".voucher.requester"),
            vm.parseJsonAddress(json, ".voucher.node"),
            vm.parseJsonAddress(json, ".voucher.token"),
            uint128(vm.parseJsonUint(json, ".voucher.cumulative")),
            uint64(vm.parseJsonUint(json, ".voucher.coveredNonce"))
        );
    }

    function test_VectorsVoucher() external view {
        _assertSigned(keccak256(abi.encode(TypedData.VOUCHER_TYPEHASH, _voucher())), ".voucher", 0);
    }

    /// @dev The escrow takes the voucher's signature, packed: all it finds wanting is money.
    function test_VectorsPackedVoucher() external {
        Voucher memory voucher = _voucher();
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(vm.deriveKey(MNEMONIC, 0), _bytes32(".voucher.digest"));
        bytes32 vs = bytes32((uint256(v - 27) << 255) | uint256(s));
        vm.expectEmit(address(escrow));
        emit IJobEscrow.VoucherSkipped(
            voucher.requester, voucher.node, voucher.token, voucher.cumulative, SkipReason.InsufficientFunds
        );
        vm.prank(voucher.node);
        escrow.redeem(
            voucher.node,
            voucher.token,
            abi.encodePacked(voucher.requester, voucher.cumulative, voucher.coveredNonce, r, vs)
        );
    }

    function _assertSigned(bytes32 structHash, string memory path, uint32 keyIndex) internal view {
        bytes32 digest = _digest(structHash);
        assertEq(digest, _bytes32(string.concat(path, ".digest")));
        uint256 key = vm.deriveKey(MNEMONIC, keyIndex);
        assertEq(vm.addr(key), vm.parseJsonAddress(json, string.concat(path, ".signer")));
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        assertEq(abi.encodePacked(r, s, v), vm.parseJsonBytes(json, string.concat(path, ".signature")));
    }

    /// @dev forge's own implementation of EIP-712 agrees: the order as `eth_signTypedData_v4` would be asked to sign it.
    function test_VectorsAgreeWithEthSignTypedData() external view {
        string memory types = string.concat(
            '{"types":{"EIP712Domain":[{"name":"name","type":"string"},{"name":"version","type":"string"},',
            '{"name":"chainId","type":"uint256"},{"name":"verifyingContract","type":"address"}],"Order":[',
            '{"name":"requester","type":"address"},{"name":"token","type":"address"},',
            '{"name":"maxPrice","type":"uint128"},{"name":"node","type":"address"},',
            '{"name":"assigner","type":"address"},{"name":"specHash","type":"bytes32"},',
            '{"name":"deadline","type":"uint64"},{"name":"challengeWindow","type":"uint32"},',
            '{"name":"arbiter","type":"address"},{"name":"maxFeeBps","type":"uint16"},',
            '{"name":"nonce","type":"uint64"}]},"primaryType":"Order","domain":'
        );
        string memory typedData = string.concat(types, _object("domain"), ',"message":', _object("order"), "}");
        assertEq(vm.eip712HashTypedData(typedData), _bytes32(".jobId"));
    }

    /// @dev The text of a member of the vectors that is an object without nested ones.
    function _object(string memory key) internal view returns (string memory) {
        uint256 start = vm.indexOf(json, string.concat('"', key, '": {')) + bytes(key).length + 4;
        bytes memory source = bytes(json);
        uint256 end = start;
        while (source[end] != "}") ++end;
        bytes memory text = new bytes(end + 1 - start);
        for (uint256 i = 0; i < text.length; ++i) {
            text[i] = source[start + i];
        }
        return string(text);
    }
}
